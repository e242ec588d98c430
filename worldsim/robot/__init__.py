"""What a robot runs: a bundle behind safety, and the server and client between policies and robots, without torch."""
