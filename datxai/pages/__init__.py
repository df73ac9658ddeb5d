"""What people look at: figures, charts, the report, the page and the document of a case, the viewer."""
