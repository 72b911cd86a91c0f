// Package enrolled is the doctor of a machine that a controller manages: an agent
// on somebody's server, mostly, without privileges, on any platform.
//
// As in package doctor, reading collects facts by really doing what the agent does:
// it calls every controller and gateway by the node's own way out and with its own
// certificate, and opens ports as listen mode does. Judging is pure and turns facts
// into findings. Nothing is changed; the controller sees no sign of life of the
// node in it.
package enrolled

import (
	"context"
	"time"

	"decoynet/deception"
)

// Subject is what is to be looked at.
type Subject struct {
	Data    string   // the data directory
	Version string   // of this program
	Running *Running // nil where none runs on the data directory
	// Argument is what decoynet's commands need to find the data directory again,
	// as " --data DIR"; empty where they find it by themselves.
	Argument string
	// Ports opens the ports of the node's decoys for a moment, as listen mode does,
	// and says of each whether that can be done. It is asked where none runs.
	Ports func(ctx context.Context, state *deception.State) []Port
	// Now is this machine's clock; nil for time.Now.
	Now func() time.Time
}

// Running is what a running decoynet says of itself.
type Running struct {
	PID          int
	Ready        bool
	Problems     []string
	Ports        []Port
	Failing      string // why records cannot be written to the spool; empty where they can
	Lost         uint64 // records that were given up
	LostKinds    string // of what kinds, as "3 sessions, 1 events"
	Waiting      uint64 // records that the controller does not have yet
	WaitingBytes uint64
}

// Port is one port of the machine that a decoy has.
type Port struct {
	Port    string // 445/tcp
	Address string // an address, or every address of a family
	Decoy   string
	Problem string // why it is not open; empty where it is, or waits for its service
}

// Facts is everything that was read.
type Facts struct {
	Now      time.Time // by this machine's clock, when it was compared
	System   string    // as runtime.GOOS
	Argument string    // of Subject

	Data     Data
	Identity Identity
	Running  *Running

	// Proxy is the node's, as host:port; empty for none. EnvironmentProxy is that
	// of HTTPS_PROXY where it is another one.
	Proxy, EnvironmentProxy string
	Controllers             []Controller

	// SnapshotErr says why there is no last snapshot that can be used.
	SnapshotErr error
	Revision    string
	State       *deception.State // the snapshot's; nil without one
	Gateways    []Gateway
	Ports       []Port
	// PrivilegedBelow is the first port that everybody may open, and Program the
	// file of the decoynet that is to open them. Both for Linux.
	PrivilegedBelow int
	Program         string
}

// Data is the data directory.
type Data struct {
	Path      string
	Err       error // why nothing can be written there
	Full      bool  // Err is that the disk is full
	FreeBytes uint64
	FreeKnown bool
}

// Identity is what makes the machine a node.
type Identity struct {
	Err     error // why there is none that can be used
	Node    string
	From    time.Time // validity of the certificate
	Expires time.Time
	RenewAt time.Time
}

// Stage says how far a call came.
type Stage string

// The stages at which it can fail.
const (
	StageReach  Stage = "reach"  // no connection
	StageTLS    Stage = "tls"    // one, but not with a controller or gateway of ours
	StageAnswer Stage = "answer" // no answer, or a strange one
	StageDenied Stage = "denied" // the controller lets this node in no more
	StageDone   Stage = ""
)

// Controller is what came of calling one controller.
type Controller struct {
	URL, Address string
	Stage        Stage
	Err          error
	Denied       string // the controller's words, at StageDenied
	// Stranger is who issued the certificate that was shown in place of a
	// controller's of ours, and OtherController whether it is one of another CA.
	Stranger        string
	OtherController bool
	// Environment says that it was reached by the proxy of HTTPS_PROXY, after
	// the node's own way had failed.
	Environment bool
	// Offset is by how much this machine's clock is ahead, give or take Slack.
	OffsetKnown   bool
	Offset, Slack time.Duration
}

// Gateway is what came of calling an ingress gateway at one of its addresses.
type Gateway struct {
	Name, Node, Address string
	Connected           bool
	RoundTrip           time.Duration
	Dial                error  // why there was no connection; nil where there was
	Text                string // what went wrong, in words
}
