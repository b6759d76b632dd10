"""The page. It knows Request, Row, and the titles and knobs of METHODS; nothing inside a method."""
