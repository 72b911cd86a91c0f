package frame

import "encoding/binary"

// Sizes of a classic pcap file's parts (draft-ietf-opsawg-pcap): the file begins
// with one header, each frame with another.
const (
	FileHeaderSize   = 24
	RecordHeaderSize = 16
)

// The file's times are in microseconds, its frames Ethernet, none cut short.
const (
	fileMagic    = 0xa1b2c3d4
	fileMajor    = 2
	fileMinor    = 4
	linkEthernet = 1
	// SnapLength is the largest frame that such a file holds.
	SnapLength = 262144
)

// AppendFileHeader appends what a pcap file begins with.
func AppendFileHeader(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, fileMagic)
	b = binary.LittleEndian.AppendUint16(b, fileMajor)
	b = binary.LittleEndian.AppendUint16(b, fileMinor)
	b = binary.LittleEndian.AppendUint64(b, 0) // time zone and accuracy, both unused
	b = binary.LittleEndian.AppendUint32(b, SnapLength)
	return binary.LittleEndian.AppendUint32(b, linkEthernet)
}

// AppendRecord appends a frame with its header. at is in Unix nanoseconds.
func AppendRecord(b []byte, at int64, frame []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(at/1e9))
	b = binary.LittleEndian.AppendUint32(b, uint32(at%1e9/1e3))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frame)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frame)))
	return append(b, frame...)
}

// typeHeartbeat is IEEE's EtherType for local experiments.
const typeHeartbeat = 0x88b5

// AppendHeartbeat appends the frame that tells a sensor nothing but the time.
func AppendHeartbeat(b []byte) []byte {
	b = Ether(b, MAC{localUnicast}, MAC{localUnicast | decoySide}, Tags{}, typeHeartbeat)
	return append(b, "decoynet heartbeat: nothing but the time goes by"...)
}
