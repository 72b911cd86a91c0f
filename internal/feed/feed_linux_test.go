package feed

import (
	"testing"

	"decoynet/deception"
)

const httpRules = `alert http any any -> any any (msg:"uri"; flow:to_server,established; http.uri; content:"/secret"; sid:1;)
alert http any any -> any any (msg:"body"; flow:to_client,established; file.data; content:"hunter2"; sid:2;)
`

func TestHTTP(t *testing.T) {
	sensor := newSensor(t, httpRules)
	out := newPcapFile(t)
	f := New(Config{Lanes: 2})
	f.Add("file", out)
	s := session(deception.TCP, "192.0.2.7:40001", "198.51.100.4:80")
	begin(f, s).client("GET /secret HTTP/1.1\r\nHost: a\r\n\r\n").
		server("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhunter2").
		fin(Client).fin(Server).end(deception.EndClientClosed)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	noComplaint(t, out.file.Name())
	events := sensor.read(t, out.file.Name())
	noEvents(t, events)
	for _, e := range events {
		t.Logf("%s", e.Raw)
	}
}
