"""Sources and sinks: image files in and out, folders, and the loop that takes one to the other."""
