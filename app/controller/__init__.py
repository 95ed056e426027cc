"""From a request to a typed plan, and from the plan to artifacts (fact sheet switchgpt.md, sections 5 to 7)."""
