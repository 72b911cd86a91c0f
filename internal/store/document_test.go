package store

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"decoynet/deception"
)

const alertDocument = `{"event_type":"alert","pkt_src":"wire/pcap","tx_id":0,"alert":{"action":"allowed","gid":1,"signature_id":2027397,"rev":3,` +
	`"signature":"ET SCAN Possible Nmap User-Agent Observed","category":"Web Application Attack","severity":1,"metadata":{"affected_product":["Any"],` +
	`"attack_target":["Client_and_Server"],"created_at":["2019_05_30"],"signature_severity":["Informational"]}},"http":{"hostname":"192.0.2.7",` +
	`"url":"/nmaplowercheck1","http_user_agent":"Mozilla/5.0 (compatible; Nmap Scripting Engine; https://nmap.org/book/nse.html)","http_content_type":"text/html",` +
	`"http_method":"GET","protocol":"HTTP/1.1","status":404,"length":153},"app_proto":"http","direction":"to_server","flow":{"pkts_toserver":4,"pkts_toclient":3,` +
	`"bytes_toserver":489,"bytes_toclient":574,"start":"2026-03-04T05:06:07.000008+0000"},"community_id":"1:L1TU3arg3LMSPbp2nsBzqUR3Lc0="}`

func TestDocumentsPack(t *testing.T) {
	long := []byte(strings.Repeat("A", deception.FindingBytes))
	for _, document := range [][]byte{
		nil, []byte("{}"), []byte(alertDocument), []byte(strings.Repeat(alertDocument, 50)), long, []byte(noise(5000)), documentDict, documentDict[100:],
		append([]byte(noise(30)), documentDict...), []byte(noise(12)), []byte(noise(13)), bytes.Repeat([]byte("ab"), 300),
	} {
		packed := pack(document)
		got, err := unpack(packed)
		if err != nil || !bytes.Equal(got, document) {
			t.Errorf("%d bytes, packed %d: %d bytes back, %v", len(document), len(packed), len(got), err)
		}
		if len(packed) > len(document)+1 {
			t.Errorf("%d bytes become %d", len(document), len(packed))
		}
	}
	if n := len(pack([]byte(alertDocument))); n > len(alertDocument)*4/10 {
		t.Errorf("an alert of %d bytes becomes %d", len(alertDocument), n)
	}
	if got, err := unpack(pack(append(long, 'A'))); err != nil || len(got) != 0 {
		t.Errorf("one that is too long: %d bytes, %v", len(got), err)
	}
	for _, bad := range []string{"", "\x02abc", "\x01", "\x01\xf0", "\x01\x1fa\x00\x00", "\x01\x1fa\xff\xff\x00"} {
		if got, err := unpack([]byte(bad)); err == nil {
			t.Errorf("%q unpacks to %q", bad, got)
		}
	}
}

// LZ4's own program reads the blocks, in a frame with the dictionary's.
func TestBlocksAreLZ4(t *testing.T) {
	dir := t.TempDir()
	dictionaryFile := filepath.Join(dir, "dict")
	if err := os.WriteFile(dictionaryFile, documentDict, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, document := range []string{alertDocument, strings.Repeat(alertDocument, 9) + noise(500), strings.Repeat("x", 60000), "{}"} {
		block := dictionary().pack(nil, []byte(document))
		// A frame: magic; version 1, independent blocks; 64 kB; xxHash of these two.
		frame := append([]byte{0x04, 0x22, 0x4d, 0x18, 0x60, 0x40, 0x82}, binary.LittleEndian.AppendUint32(nil, uint32(len(block)))...)
		frame = append(append(frame, block...), 0, 0, 0, 0)
		file := filepath.Join(dir, "block.lz4")
		if err := os.WriteFile(file, frame, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := run(t, "lz4", "-q", "-d", "-c", "-D", dictionaryFile, file); got != document {
			t.Errorf("lz4 reads %d bytes of %d: %.200s", len(got), len(document), got)
		}
	}
}

// Whatever is in the database is unpacked or refused, and whatever is packed comes
// back.
func FuzzDocument(f *testing.F) {
	f.Add([]byte(alertDocument))
	f.Add(pack([]byte(alertDocument)))
	f.Add([]byte("\x01\x1fa\x01\x00\xff\xff\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := unpack(b); err == nil && len(out) > max(deception.FindingBytes, len(b)) {
			t.Errorf("%d bytes", len(out))
		}
		if len(b) > deception.FindingBytes {
			return
		}
		if out, err := unpack(pack(b)); err != nil || !bytes.Equal(out, b) {
			t.Errorf("%d bytes back of %d, %v", len(out), len(b), err)
		}
	})
}
