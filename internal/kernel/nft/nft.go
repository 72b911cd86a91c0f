// Package nft connects to nftables, and tells a kernel that lacks something from
// one that refuses.
package nft
