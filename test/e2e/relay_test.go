//go:build linux

package e2e

import (
	"fmt"
	"testing"
	"time"
)

const officeDocument = `
node: gw
segments:
  - name: office
    parent: eth0
    steering: %s
    subnets:
      - {prefix: 192.0.2.0/24, gateway: 192.0.2.1}
      - {prefix: "2001:db8:2::/64"}
zones:
  - name: linux
    subnet: [10.1.0.0/24, "fd00:1::/64"]
    link: br-linux
services:
  - {name: web, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [80, 443]}
  - {name: redis, zone: linux, address: [10.1.0.3, "fd00:1::3"], ports: [6379]}
  - {name: ssh, zone: linux, address: [10.1.0.4, "fd00:1::4"], ports: [22]}
  - {name: snmp, zone: linux, address: [10.1.0.5, "fd00:1::5"], ports: [161/udp]}
decoys:
  - name: office-web
    segment: office
    addresses: [192.0.2.100-192.0.2.150, 192.0.2.247, "2001:db8:2::100-2001:db8:2::10f"]
    bind:
      - {ports: [80, 443], service: web}
      - {ports: [2222], service: ssh, target: 22}
      - {ports: [6379], service: redis}
      - {ports: [161/udp], service: snmp}
`

var steerings = []string{"sk_lookup", "tproxy"}

func TestRelay(t *testing.T) {
	for _, steering := range steerings {
		t.Run(steering, func(t *testing.T) {
			o := newOffice(t)
			o.document(fmt.Sprintf(officeDocument, steering))
			o.up()
			for _, url := range []string{"http://192.0.2.100/", "http://192.0.2.150/", "http://[2001:db8:2::10f]/"} {
				out, err := o.Intruder.Run(t.Context(), "curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url)
				if err != nil || out != "200" {
					t.Fatalf("curl %s: %q, %v", url, out, err)
				}
			}
			contacts, err := o.Web.Contacts()
			t.Log(contacts, err)
			time.Sleep(500 * time.Millisecond)
			out, err := o.decoynet("get", "sessions", "-o", "wide")
			t.Log(out, err)
			out, err = o.decoynet("status")
			t.Log(out, err)
			o.down()
		})
	}
}
