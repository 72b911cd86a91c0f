package main

// ownerOf has nothing to give back: the files' access list lets administrators and the
// system in, whoever wrote them.
func ownerOf(string) func() error { return func() error { return nil } }
