package suricata

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// console is a connection to Suricata's command socket.
type console struct {
	conn net.Conn
	in   *bufio.Reader
}

// dial connects to the socket in dir, Suricata's directory. The path goes by a
// descriptor, since a socket's name holds 107 bytes and a data directory more.
func dial(ctx context.Context, dir string) (*console, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("reach suricata: %w", err)
	}
	defer d.Close()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", filepath.Join(fmt.Sprintf("/proc/self/fd/%d", d.Fd()), socketName))
	if err != nil {
		return nil, fmt.Errorf("reach suricata: %w", err)
	}
	c := &console{conn: conn, in: bufio.NewReader(conn)}
	if _, err := c.exchange(ctx, map[string]any{"version": "0.2"}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet suricata: %w", err)
	}
	return c, nil
}

func (c *console) close() { c.conn.Close() }

// maxAnswer bounds what is read of an answer; counters are some 20 kB.
const maxAnswer = 4 << 20

// exchange sends one request and returns the message of its answer.
func (c *console) exchange(ctx context.Context, request any) (json.RawMessage, error) {
	end := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer end()
	text, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("write a command: %w", err)
	}
	if _, err := c.conn.Write(append(text, '\n')); err != nil {
		return nil, c.because(ctx, err)
	}
	var line []byte
	for {
		part, err := c.in.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) || len(line) > maxAnswer {
			return nil, c.because(ctx, err)
		}
	}
	var answer struct {
		Return  string          `json:"return"`
		Message json.RawMessage `json:"message"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return nil, fmt.Errorf("read an answer: %w", err)
	}
	if answer.Return != "OK" {
		return nil, fmt.Errorf("suricata refused: %s", answer.Message)
	}
	return answer.Message, nil
}

// because prefers the reason of a cancelled context over "i/o timeout".
func (c *console) because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return fmt.Errorf("wait for an answer: %w", err)
}

// command has Suricata do one thing and returns what it says.
func command(ctx context.Context, dir, name string) (json.RawMessage, error) {
	c, err := dial(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer c.close()
	answer, err := c.exchange(ctx, map[string]any{"command": name})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return answer, nil
}
