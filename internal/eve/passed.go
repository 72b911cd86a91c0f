package eve

import "slices"

// publish lets Passed know which files are over.
func (r *Reader) publish(done []digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settled = done
}

// Passed tells whether a rotated file was read to its end, and what it held outlives
// the process: it may be removed.
func (r *Reader) Passed(path string) bool {
	head, err := headAt(path)
	if err != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.settled, head)
}
