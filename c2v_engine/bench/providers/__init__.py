"""Who embeds the texts."""
