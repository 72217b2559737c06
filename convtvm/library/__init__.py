"""From records to one file: choices, the build, the deployment folder."""
