"""Job files for schedulers: one file each turns a command and a size into what that scheduler takes."""
