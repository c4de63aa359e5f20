"""Everyone who takes part: floors, dspool, and the peers, all behind one small interface (contestant.Contestant)."""
