"""Other programs that run InternVL, planned beside ivl: what they need, lack, and are told."""
