"""From records to tables, figures and a page: everything here reads `Record` rows and nothing else of a run."""
