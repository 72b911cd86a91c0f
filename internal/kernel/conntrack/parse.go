package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"decoynet/deception"
)

// Numbers of linux/netlink.h and linux/netfilter/nfnetlink_conntrack.h.
const (
	subsystem = 1 // NFNL_SUBSYS_CTNETLINK

	msgNew    = 0 // IPCTNL_MSG_CT_NEW
	msgGet    = 1 // IPCTNL_MSG_CT_GET
	msgDelete = 2 // IPCTNL_MSG_CT_DELETE

	flagExcl   = 0x200 // NLM_F_EXCL
	flagCreate = 0x400 // NLM_F_CREATE

	ctaTupleOrig     = 1
	ctaTupleReply    = 2
	ctaStatus        = 3
	ctaProtoInfo     = 4
	ctaMark          = 8
	ctaCountersOrig  = 9
	ctaCountersReply = 10
	ctaID            = 12
	ctaTimestamp     = 20
	ctaMarkMask      = 21

	ctaTupleIP    = 1
	ctaTupleProto = 2

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaCountersPackets = 1
	ctaCountersBytes   = 2

	ctaTimestampStart = 1
	ctaTimestampStop  = 2

	ctaProtoInfoTCP  = 1
	ctaTCPState      = 1
	ctaTCPFlagsOrig  = 4
	ctaTCPFlagsReply = 5

	nlaHeader   = 4
	nlaTypeMask = 0x3fff
	nfgenLen    = 4
)

// errMalformed is wrapped by the errors about messages that break off.
var errMalformed = errors.New("malformed connection tracking message")

// parseMessage reads one message's body, behind its netlink header.
func parseMessage(kind, flags uint16, body []byte, e *Event) error {
	if len(body) < nfgenLen {
		return fmt.Errorf("%w: %d bytes", errMalformed, len(body))
	}
	switch kind {
	case subsystem<<8 | msgDelete:
		e.Type = EventDestroy
	case subsystem<<8 | msgNew:
		e.Type = EventUpdate
		if flags&(flagCreate|flagExcl) != 0 {
			e.Type = EventNew
		}
	default:
		return fmt.Errorf("%w: type %#x", errMalformed, kind)
	}
	return attributes(body[nfgenLen:], func(kind uint16, b []byte) error {
		switch kind {
		case ctaTupleOrig:
			return parseTuple(b, &e.Orig, &e.Transport)
		case ctaTupleReply:
			return parseTuple(b, &e.Reply, &e.Transport)
		case ctaStatus:
			v, err := number(b, 4)
			e.Status = Status(v)
			return err
		case ctaMark:
			v, err := number(b, 4)
			e.Mark = uint32(v)
			return err
		case ctaID:
			v, err := number(b, 4)
			e.ID = uint32(v)
			return err
		case ctaCountersOrig:
			return parseCounters(b, &e.OrigCount)
		case ctaCountersReply:
			return parseCounters(b, &e.ReplyCount)
		case ctaTimestamp:
			return parseTimestamp(b, e)
		case ctaProtoInfo:
			return parseProtoInfo(b, e)
		}
		return nil
	})
}

// attributes calls f for each attribute of b.
func attributes(b []byte, f func(kind uint16, value []byte) error) error {
	for len(b) >= nlaHeader {
		size := int(binary.NativeEndian.Uint16(b))
		if size < nlaHeader || size > len(b) {
			return fmt.Errorf("%w: attribute of %d bytes in %d", errMalformed, size, len(b))
		}
		if err := f(binary.NativeEndian.Uint16(b[2:])&nlaTypeMask, b[nlaHeader:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// number reads a big-endian number of the given size.
func number(b []byte, size int) (uint64, error) {
	if len(b) < size {
		return 0, fmt.Errorf("%w: number of %d bytes", errMalformed, len(b))
	}
	var v uint64
	for _, x := range b[:size] {
		v = v<<8 | uint64(x)
	}
	return v, nil
}

func parseTuple(b []byte, t *Tuple, transport *deception.Transport) error {
	var src, dst netip.Addr
	var srcPort, dstPort uint64
	err := attributes(b, func(kind uint16, b []byte) error {
		return attributes(b, func(inner uint16, b []byte) (err error) {
			switch {
			case kind == ctaTupleIP && (inner == ctaIPv4Src || inner == ctaIPv6Src):
				src, err = address(b)
			case kind == ctaTupleIP && (inner == ctaIPv4Dst || inner == ctaIPv6Dst):
				dst, err = address(b)
			case kind == ctaTupleProto && inner == ctaProtoNum:
				var v uint64
				v, err = number(b, 1)
				*transport = deception.Transport(v)
			case kind == ctaTupleProto && inner == ctaProtoSrcPort:
				srcPort, err = number(b, 2)
			case kind == ctaTupleProto && inner == ctaProtoDstPort:
				dstPort, err = number(b, 2)
			}
			return err
		})
	})
	*t = Tuple{Src: netip.AddrPortFrom(src, uint16(srcPort)), Dst: netip.AddrPortFrom(dst, uint16(dstPort))}
	return err
}

func address(b []byte) (netip.Addr, error) {
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		return a, fmt.Errorf("%w: address of %d bytes", errMalformed, len(b))
	}
	return a, nil
}

func parseCounters(b []byte, c *Counters) error {
	return attributes(b, func(kind uint16, b []byte) (err error) {
		switch kind {
		case ctaCountersPackets:
			c.Packets, err = number(b, 8)
		case ctaCountersBytes:
			c.Bytes, err = number(b, 8)
		}
		return err
	})
}

func parseTimestamp(b []byte, e *Event) error {
	return attributes(b, func(kind uint16, b []byte) error {
		if kind != ctaTimestampStart && kind != ctaTimestampStop {
			return nil
		}
		v, err := number(b, 8)
		if err != nil || v == 0 {
			return err
		}
		if kind == ctaTimestampStart {
			e.Start = time.Unix(0, int64(v))
		} else {
			e.Stop = time.Unix(0, int64(v))
		}
		return nil
	})
}

func parseProtoInfo(b []byte, e *Event) error {
	return attributes(b, func(kind uint16, b []byte) error {
		if kind != ctaProtoInfoTCP {
			return nil
		}
		e.HasTCP = true
		return attributes(b, func(kind uint16, b []byte) error {
			// Flags are two bytes, the flags and their mask; of each
			// attribute the first byte counts.
			v, err := number(b, 1)
			switch kind {
			case ctaTCPState:
				e.TCPState = TCPState(v)
			case ctaTCPFlagsOrig:
				e.OrigFlags = uint8(v)
			case ctaTCPFlagsReply:
				e.ReplyFlags = uint8(v)
			}
			return err
		})
	})
}
