"""From rows to tokens: sources, the data gate, chat templates, the token cache."""
