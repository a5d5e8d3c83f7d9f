"""autotune for people with a browser: a local web app over the same searches, run folders and pages."""
