"""The report: the page, its tables, the captions, the exports."""
