"""The worker's side of the wire: fetch, claim, publish, finish, lease. All that speaks to the server lives here."""
