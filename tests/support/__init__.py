"""What several test files share: the assignments' notebooks, submissions, attacks, the sandbox, a browser."""
