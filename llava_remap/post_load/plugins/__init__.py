"""The post-load rules that come with this package."""
