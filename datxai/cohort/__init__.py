"""Who a subject is: participants, where their scans lie, what readers saw, which set they fall in."""
