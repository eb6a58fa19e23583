"""What the drivers share: processes, control groups, directories and disks on the host."""
