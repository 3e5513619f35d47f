"""Its place puts the made-up engines of this folder on the path of the folders below."""
