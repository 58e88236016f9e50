"""Words for directions: text spaces, phrases and features."""

from unweave.text.phrases import TEMPLATES, features, read_phrases, read_templates
from unweave.text.space import Match, TextSpace, text_space

__all__ = ["TEMPLATES", "Match", "TextSpace", "features", "read_phrases", "read_templates", "text_space"]
