"""The ensemble in service: a Ray Serve application that answers, and takes requests in to forget."""
