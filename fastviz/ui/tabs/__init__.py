"""The page's tabs, one file each. A Tab builds its parts when it is made; `shown` are those that work may change; `begun` is
what they become when a new comparison begins; `wire` connects its buttons and gives back the events that start work;
`left` tells what a finished piece of its work leaves on the page."""
