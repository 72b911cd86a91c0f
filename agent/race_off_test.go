//go:build !race

package agent

// raceEnabled says that the race detector holds memory of its own.
const raceEnabled = false
