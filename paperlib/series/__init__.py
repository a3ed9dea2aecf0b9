"""The notebooks as one series: executed by papermill, checked, and bound to an HTML site."""
