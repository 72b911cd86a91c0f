package outbound

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"unicode"
)

// maxAnswer is the most that a proxy's answer may take up to the end of its header,
// in bytes; interim answers count in.
const maxAnswer = 16 << 10

// request writes the CONNECT request. The user agent is the one of any Go program:
// some proxies want one, and none needs to know what runs here.
func request(p *proxy, target string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: Go-http-client/1.1\r\n", target, target)
	if p.user != nil {
		password, _ := p.user.Password()
		pair := p.user.Username() + ":" + password
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", base64.StdEncoding.EncodeToString([]byte(pair)))
	}
	b.WriteString("\r\n")
	return b.Bytes()
}

// answer is what a proxy says to a request.
type answer struct {
	code    int
	reason  string   // its own words, fit for printing
	schemes []string // of authentication that it would take, lower case
}

// readAnswer reads a proxy's answer up to the end of its header and returns what
// was read beyond it, which is the target's.
func readAnswer(r io.Reader) (rest []byte, a answer, err error) {
	limited := &io.LimitedReader{R: r, N: maxAnswer}
	seen := &firstBytes{r: limited}
	br := bufio.NewReaderSize(seen, 4096)
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
		if err != nil {
			return nil, answer{}, answerError(err, limited.N <= 0, seen)
		}
		if resp.ProtoMajor != 1 || resp.StatusCode < 100 || resp.StatusCode > 599 {
			return nil, answer{}, fmt.Errorf("its answer is malformed, it began with %q", printable(string(seen.head)))
		}
		// Its body is not read: that of a success does not exist, whatever the
		// header says of a length (RFC 9110, section 9.3.6), and that of a refusal
		// ends with the connection.
		if resp.StatusCode/100 == 1 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue // interim, RFC 9110, section 15.2
		}
		a := answer{code: resp.StatusCode, reason: printable(resp.Status)}
		for _, v := range resp.Header.Values("Proxy-Authenticate") {
			if f := strings.Fields(v); len(f) > 0 {
				a.schemes = append(a.schemes, printable(strings.ToLower(f[0])))
			}
		}
		slices.Sort(a.schemes)
		a.schemes = slices.Compact(a.schemes)
		rest, err := br.Peek(br.Buffered())
		return bytes.Clone(rest), a, err
	}
}

// answerError says what is wrong with an answer that could not be read.
func answerError(err error, exhausted bool, seen *firstBytes) error {
	head := seen.head
	switch {
	case seen.err != nil && !errors.Is(seen.err, io.EOF):
		return seen.err // of the connection
	case exhausted:
		return fmt.Errorf("its answer's header is longer than %d bytes", maxAnswer)
	case len(head) == 0:
		return errors.New("it closed the connection without an answer")
	case !bytes.HasPrefix(head, []byte("HTTP/")) && !bytes.HasPrefix([]byte("HTTP/"), head):
		if len(head) > 2 && head[1] == 3 && (head[0] == 0x15 || head[0] == 0x16) {
			return errors.New("it speaks TLS: write https:// for the proxy")
		}
		return fmt.Errorf("it speaks no HTTP, it began with %q", printable(string(head)))
	case seen.err != nil:
		return errors.New("it closed the connection in the middle of its answer")
	}
	return fmt.Errorf("its answer is malformed, it began with %q: %w", printable(string(head)), err)
}

// firstBytes keeps the beginning of what is read, and the error that ended it.
type firstBytes struct {
	r    io.Reader
	head []byte
	err  error
}

func (f *firstBytes) Read(b []byte) (int, error) {
	n, err := f.r.Read(b)
	if room := 64 - len(f.head); room > 0 {
		f.head = append(f.head, b[:min(n, room)]...)
	}
	if err != nil {
		f.err = err
	}
	return n, err
}

// printable makes a stranger's text fit for a terminal and a line.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '.'
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 80 {
		s = string(r[:80]) + "..."
	}
	return s
}
