"""The charting library of the HTML report, built from the npm registry."""
