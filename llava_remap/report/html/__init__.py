"""Plans, refusals and results as one page for a browser.

`rows` has every tensor of a job, `flow` the picture, and `rule_lines` the rule file's text. `page`
puts them into `page.html.jinja`. The page holds the scripts and the data. Names come from outside,
so the template escapes every text, and the scripts write only text nodes.
"""

from llava_remap.report.html.page import plan_html, refusal_html

__all__ = ["plan_html", "refusal_html"]
