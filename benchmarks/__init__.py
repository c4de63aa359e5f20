"""What dspool costs, beside what a bare pipe costs and what others cost. Each module is a script; see harness."""
