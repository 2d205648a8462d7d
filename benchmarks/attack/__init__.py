"""Files that attack whoever reads them, through the commands that people type: refused, or harmless."""
