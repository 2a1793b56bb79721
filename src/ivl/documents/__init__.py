"""Documents: files of one or many pages, and reading all the text in them."""
