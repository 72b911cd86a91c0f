package store

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// The block format of LZ4 with a dictionary in front of what is packed: runs of
// literals, each followed by "copy so many bytes from so far back".
//
// See https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md. It is here
// because compress/flate, the only one of the standard library's that takes a
// dictionary, clears 640 kB of tables for each document: 110 to 220 µs for 1.3 kB,
// where this takes a few.
const (
	lzMinMatch = 4
	lzTail     = 12 // the last match starts so long before the end
	lzLiterals = 5  // and the last bytes are literals
	lzMaxBack  = 1<<16 - 1
	lzBits     = 13 // of the hash tables
)

// lzDictionary is a dictionary, with where its sequences stand.
type lzDictionary struct {
	text  []byte
	table [1 << lzBits]uint16 // position + 1 of four bytes, by their hash
}

func newLZDictionary(text []byte) *lzDictionary {
	d := &lzDictionary{text: text}
	for i := 0; i+lzMinMatch <= len(text); i++ {
		d.table[lzHash(text[i:])] = uint16(i + 1)
	}
	return d
}

func lzHash(b []byte) uint32 {
	return binary.LittleEndian.Uint32(b) * 2654435761 >> (32 - lzBits)
}

// pack appends src, of at most 64 KiB with the dictionary, as a block to dst.
func (d *lzDictionary) pack(dst, src []byte) []byte {
	var table [1 << lzBits]uint16 // as the dictionary's, of src
	written, at := 0, 0           // of src
	for at+lzTail <= len(src) {
		h := lzHash(src[at:])
		length, back := 0, 0
		if p := int(table[h]); p > 0 && at-p+1 <= lzMaxBack {
			length, back = lzMatch(src[p-1:], src[at:len(src)-lzLiterals]), at-p+1
		}
		if p := int(d.table[h]); p > 0 && at+len(d.text)-p+1 <= lzMaxBack {
			if n := lzMatch(d.text[p-1:], src[at:len(src)-lzLiterals]); n > length {
				length, back = n, at+len(d.text)-p+1
			}
		}
		table[h] = uint16(at + 1)
		if length < lzMinMatch {
			at++
			continue
		}
		dst = lzSequence(dst, src[written:at], length, back)
		for i := at + 1; i < min(at+length, len(src)-lzTail); i += 3 {
			table[lzHash(src[i:])] = uint16(i + 1)
		}
		at += length
		written = at
	}
	return lzSequence(dst, src[written:], 0, 0)
}

// lzMatch returns how many bytes are the same.
func lzMatch(a, b []byte) (n int) {
	limit := min(len(a), len(b))
	for ; n+8 <= limit; n += 8 {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)/8
		}
	}
	for n < limit && a[n] == b[n] {
		n++
	}
	return n
}

// lzSequence appends literals and a match; back 0 stands for none, at the end.
func lzSequence(dst, literals []byte, length, back int) []byte {
	token := byte(min(len(literals), 15)) << 4
	if back > 0 {
		token |= byte(min(length-lzMinMatch, 15))
	}
	dst = lzLength(append(dst, token), len(literals))
	dst = append(dst, literals...)
	if back == 0 {
		return dst
	}
	return lzLength(binary.LittleEndian.AppendUint16(dst, uint16(back)), length-lzMinMatch)
}

// lzLength appends what of a length the token does not hold.
func lzLength(dst []byte, n int) []byte {
	if n < 15 {
		return dst
	}
	for n -= 15; n >= 255; n -= 255 {
		dst = append(dst, 255)
	}
	return append(dst, byte(n))
}

var errLZ4 = errors.New("not a block of LZ4")

// unpack returns what pack was given, unless that is more than limit bytes.
func (d *lzDictionary) unpack(src []byte, limit int) ([]byte, error) {
	var out []byte
	for {
		if len(src) == 0 {
			return nil, errLZ4
		}
		token := src[0]
		n, rest, ok := lzReadLength(src[1:], int(token>>4))
		if !ok || n > len(rest) || len(out)+n > limit {
			return nil, errLZ4
		}
		out, src = append(out, rest[:n]...), rest[n:]
		if len(src) == 0 {
			return out, nil
		}
		if len(src) < 2 {
			return nil, errLZ4
		}
		back := int(binary.LittleEndian.Uint16(src))
		n, src, ok = lzReadLength(src[2:], int(token&15))
		n += lzMinMatch
		if !ok || back == 0 || back > len(d.text)+len(out) || len(out)+n > limit {
			return nil, errLZ4
		}
		for ; n > 0; n-- { // byte by byte: a match may reach into itself
			if i := len(out) - back; i >= 0 {
				out = append(out, out[i])
			} else {
				out = append(out, d.text[len(d.text)+i])
			}
		}
	}
}

func lzReadLength(src []byte, n int) (length int, rest []byte, ok bool) {
	if n < 15 {
		return n, src, true
	}
	for i, b := range src {
		if n += int(b); b != 255 {
			return n, src[i+1:], true
		}
	}
	return 0, nil, false
}
