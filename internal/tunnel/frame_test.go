package tunnel

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/iotest"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

// tape is a transport that records what is written and plays what it was given.
type tape struct {
	mu  sync.Mutex
	in  io.Reader
	out []byte
}

func (t *tape) Read(p []byte) (int, error) {
	if t.in == nil {
		return 0, io.EOF
	}
	return t.in.Read(p)
}

func (t *tape) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.out = append(t.out, p...)
	return len(p), nil
}

func (t *tape) Flush() error     { return nil }
func (t *tape) Close() error     { return nil }
func (t *tape) Received() uint64 { return 0 }
func (t *tape) Tune()            {}

// frames are the frames that were written.
func (t *tape) frames(tb testing.TB) []frame {
	tb.Helper()
	t.mu.Lock()
	defer t.mu.Unlock()
	frames, err := scan(bytes.NewReader(t.out))
	if err != io.EOF {
		tb.Fatalf("what was written is no sequence of frames: %v", err)
	}
	return frames
}

// scan reads frames to the end.
func scan(r io.Reader) (frames []frame, err error) {
	s := newScanner(r)
	defer s.close()
	for {
		f, err := s.next()
		if err != nil {
			return frames, err
		}
		f.payload = slices.Clone(f.payload)
		frames = append(frames, f)
	}
}

// raw makes a frame, right or wrong.
func raw(kind frameType, flags uint8, stream uint32, payload []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(payload))
	putHeader(b, kind, flags, stream, len(payload))
	return append(b, payload...)
}

func TestScanner(t *testing.T) {
	want := []frame{
		{frameOpen, flagDatagrams, 0x10000, []byte("header")},
		{frameData, 0, 0x10000, bytes.Repeat([]byte("x"), maxPayload)},
		{frameData, flagMore, 0x10000, []byte("y")},
		{frameFIN, 0, 0x20003, []byte{}},
		{frameReset, 0, 0x20003, []byte{byte(deception.EndIdle)}},
		{frameWindow, 0, 0x20003, []byte{0, 1, 0, 0}},
		{framePing, 0, 0, []byte("12345678")},
		{framePong, 0, 0, []byte("12345678")},
		{frameMessage, flagMore, 0, bytes.Repeat([]byte("m"), 100)},
		{frameBye, 0, 0, []byte("farewell")},
	}
	var stream []byte
	for _, f := range want {
		stream = append(stream, raw(f.kind, f.flags, f.stream, f.payload)...)
	}
	readers := map[string]io.Reader{
		"whole":       bytes.NewReader(stream),
		"byte a time": iotest.OneByteReader(bytes.NewReader(stream)),
		"halves":      iotest.HalfReader(bytes.NewReader(stream)),
		"with error":  iotest.DataErrReader(bytes.NewReader(stream)),
	}
	for name, r := range readers {
		t.Run(name, func(t *testing.T) {
			got, err := scan(r)
			if err != io.EOF {
				t.Errorf("after the last frame: %v", err)
			}
			if diff := cmp.Diff(want, got, cmp.AllowUnexported(frame{}), cmp.Comparer(bytes.Equal)); diff != "" {
				t.Errorf("frames (-want +got):\n%s", diff)
			}
		})
	}
	for n := range len(stream) - len(raw(frameBye, 0, 0, []byte("farewell"))) {
		if _, err := scan(bytes.NewReader(stream[:n])); err != io.EOF && err != io.ErrUnexpectedEOF {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
		if n == 100 {
			break
		}
	}
}

func TestScannerRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"type 0":             raw(0, 0, 0, nil),
		"unknown type":       raw(frameBye+1, 0, 0, nil),
		"too long":           raw(frameData, 0, 1, nil)[:2:2],
		"long header":        raw(frameOpen, 0, 1, make([]byte, MaxHeader+1)),
		"long reset":         raw(frameReset, 0, 1, []byte{1, 2}),
		"short window":       raw(frameWindow, 0, 1, []byte{1, 2}),
		"short ping":         raw(framePing, 0, 0, []byte{1}),
		"short message":      raw(frameMessage, 0, 0, make([]byte, messagePrefix-1)),
		"unknown flag":       raw(frameData, 0x80, 1, []byte("x")),
		"flag of another":    raw(frameFIN, flagMore, 1, nil),
		"ping for a stream":  raw(framePing, 0, 7, make([]byte, 8)),
		"hello for a stream": raw(frameHello, 0, 7, make([]byte, helloSize)),
	} {
		if name == "too long" {
			b = append(b, 0xff, 0xff, 0, 0, 0, 1) // announced only: it is not waited for
		}
		if _, err := scan(bytes.NewReader(b)); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHello(t *testing.T) {
	good := hello{helloVersion, 100, firstWindow}
	parse := func(b []byte) (hello, error) {
		frames, err := scan(bytes.NewReader(b))
		if err != io.EOF {
			t.Fatal(err)
		}
		return parseHello(frames[0])
	}
	if got, err := parse(good.append(nil)); err != nil || got != good {
		t.Errorf("hello: %+v, %v", got, err)
	}
	longer := append(good.append(nil)[headerSize:], "something new"...)
	if got, err := parse(raw(frameHello, 0, 0, longer)); err != nil || got != good {
		t.Errorf("hello with more in it: %+v, %v", got, err)
	}
	for name, test := range map[string]struct {
		b    []byte
		want error
	}{
		"another version": {hello{helloVersion + 1, 100, firstWindow}.append(nil), ErrVersion},
		"no streams":      {hello{helloVersion, 0, firstWindow}.append(nil), ErrProtocol},
		"no window":       {hello{helloVersion, 100, 0}.append(nil), ErrProtocol},
		"endless window":  {hello{helloVersion, 100, maxWindow + 1}.append(nil), ErrProtocol},
		"no hello":        {raw(framePing, 0, 0, make([]byte, 8)), ErrProtocol},
		"bye":             {raw(frameBye, 0, 0, []byte("go away")), errGone},
	} {
		if _, err := parse(test.b); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
}

// FuzzFrames gives arbitrary bytes to both roles of a connection: no panic, and
// no more memory than the limits allow.
func FuzzFrames(f *testing.F) {
	open := raw(frameOpen, 0, 0x10000, []byte("header"))
	datagrams := raw(frameOpen, flagDatagrams, 0x10001, nil)
	data := raw(frameData, 0, 0x10000, []byte("data"))
	f.Add(slices.Concat(open, data, raw(frameFIN, 0, 0x10000, nil)))
	f.Add(slices.Concat(open, data, raw(frameReset, 0, 0x10000, []byte{3}), open))
	f.Add(slices.Concat(datagrams, raw(frameData, flagMore, 0x10001, make([]byte, maxPayload)), raw(frameData, 0, 0x10001, nil)))
	f.Add(slices.Concat(open, raw(frameWindow, 0, 0x10000, []byte{0xff, 0xff, 0xff, 0xff})))
	f.Add(slices.Concat(raw(framePing, 0, 0, make([]byte, 8)), raw(framePong, 0, 0, make([]byte, 8)), raw(frameBye, 0, 0, nil)))
	f.Add(slices.Concat(raw(frameMessage, flagMore, 0, make([]byte, 20)), raw(frameMessage, 0, 0, make([]byte, 20))))
	f.Add(raw(frameOpen, 0, 0xffffffff, make([]byte, MaxHeader)))
	f.Add([]byte{byte(frameData), 0, 0xff, 0xff, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, dialed := range []bool{false, true} {
			fuzzConn(t, b, dialed)
		}
	})
}

func fuzzConn(t *testing.T, b []byte, dialed bool) {
	const streams = 32
	var served sync.WaitGroup
	quit := make(chan struct{})
	cfg := connConfig{
		dialed: dialed, silence: 4, streams: streams, peer: hello{helloVersion, streams, firstWindow},
		serve: func(s *Stream) { <-quit }, served: &served,
	}
	if dialed {
		cfg.told = func(_, _ uint64, m []byte) {
			if len(m) > MaxMessage {
				t.Errorf("a message of %d bytes", len(m))
			}
		}
	}
	wire := &tape{in: bytes.NewReader(b)}
	c := newConn(wire, cfg)
	var own []*Stream
	if dialed {
		for i := range 3 {
			s, err := c.open([]byte("header"), i == 1)
			if err != nil {
				t.Fatal(err)
			}
			own = append(own, s)
		}
	}
	in := newScanner(wire)
	err := c.readLoop(in)
	in.close()
	if err == nil {
		t.Error("the end of the input is no end of the connection")
	}
	if n := c.live.Load(); n > streams {
		t.Errorf("%d streams, of at most %d", n, streams)
	}
	// Every byte held was sent, or is room in a buffer that is small, or half full.
	if held := c.held.Load(); held > int64(4*len(b)+tinyBuffer*len(b)/headerSize) {
		t.Errorf("%d bytes are held for %d bytes of input", held, len(b))
	}
	c.mu.Lock()
	slots := len(c.slots)
	c.mu.Unlock()
	if slots > 1<<16 {
		t.Errorf("%d places", slots)
	}
	out := &batch{wire: wire}
	c.gather(out, batchSize)
	out.flush()
	wire.frames(t) // what it answers is well formed
	c.fail(err, "")
	close(quit)
	served.Wait()
	for _, s := range own {
		s.Close()
	}
	if held := c.held.Load(); held != 0 {
		t.Errorf("%d bytes are held after the end", held)
	}
}
