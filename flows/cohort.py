"""Where deployments that version 0.1.0 registered look for their flow; `medad deploy` registers its present place."""

from flows.screen import screen_cohort

__all__ = ["screen_cohort"]
