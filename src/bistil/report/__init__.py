"""Records in, tables and one offline HTML file out."""
