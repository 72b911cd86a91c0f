package tunnel

// waitReadTakes is how much WaitRead takes over from the connection at most, in
// bytes, unless the first piece is larger.
const waitReadTakes = 4 * SegmentSize

// WaitRead waits until Read would not, and returns the error that Read would
// return, if it would. So nobody needs to hold a buffer for a stream that is
// silent.
func (s *Stream) WaitRead() error {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.rest.head != nil {
		return nil
	}
	return s.await(waitReadTakes)
}
