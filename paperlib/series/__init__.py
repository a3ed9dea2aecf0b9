"""The notebooks as one series: executed by papermill, checked, and written as an HTML site."""
