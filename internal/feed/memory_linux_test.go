package feed

import (
	"fmt"
	"runtime"
	"testing"
	"time"
	"weak"

	"decoynet/deception"
)

// keeper is a Writer that is told what an Archive is.
type keeper struct{ discard }

func (keeper) Archive() {}

// TestFlowsAreLetGo: what a flow takes in memory is free when it has ended and is
// written, whoever it was written to.
func TestFlowsAreLetGo(t *testing.T) {
	for name, w := range map[string]Writer{"sensor": discard{}, "archive": keeper{}} {
		t.Run(name, func(t *testing.T) {
			f := New(Config{Lanes: 2})
			defer f.Close()
			f.Add("out", w)
			var flows []weak.Pointer[Flow]
			for i := range 300 {
				transport := deception.TCP
				if i%3 == 0 {
					transport = deception.UDP
				}
				p := begin(f, session(transport, fmt.Sprint("192.0.2.7:", 1024+i), "198.51.100.4:80")).client(request).server(response)
				flows = append(flows, weak.Make(p.w))
				switch i % 5 {
				case 0:
					p.fin(Client).end(deception.EndClientClosed)
				case 1:
					(*f.outputs.Load())[0].lose(p.w)
					p.end(deception.EndClientClosed)
				default:
					p.end(deception.EndServiceReset)
				}
			}
			held := 0
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				runtime.GC()
				held = 0
				for _, p := range flows {
					if p.Value() != nil {
						held++
					}
				}
				if held == 0 {
					return
				}
			}
			t.Errorf("%d of %d flows are held in memory", held, len(flows))
		})
	}
}
