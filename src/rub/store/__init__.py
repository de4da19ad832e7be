"""Where stages and records live: content-addressed artifacts, and the table of records."""
