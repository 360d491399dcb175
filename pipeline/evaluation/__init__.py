"""What evaluation is made of: predictions side by side, their scores, tables and figures."""
