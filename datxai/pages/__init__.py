"""Output for people: figures, charts, the report, the page and the document of a case, the viewer."""
