{{/*
HMAC-SHA-256 in hexadecimal, for which helm has no function. Takes a list: a pepper of exactly 64
hexadecimal digits (one block of SHA-256), and a text. tests/charts compares it with Python's.
*/}}
{{- define "fairlead.hmac" -}}
{{- $inner := "" -}}
{{- $outer := "" -}}
{{- range splitList "" (index . 0) -}}
{{- $digit := include "fairlead.digit" . | int -}}
{{- $byte := add $digit (ternary 48 87 (lt $digit 10)) -}}
{{- $inner = printf "%s%c" $inner (include "fairlead.xor" (list $byte 54) | int) -}}
{{- $outer = printf "%s%c" $outer (include "fairlead.xor" (list $byte 92) | int) -}}
{{- end -}}
{{- $raw := include "fairlead.base64" (sha256sum (printf "%s%s" $inner (index . 1))) | b64dec -}}
{{- sha256sum (printf "%s%s" $outer $raw) -}}
{{- end -}}

{{/* The number of a hexadecimal digit. */}}
{{- define "fairlead.digit" -}}
{{- get (dict "0" 0 "1" 1 "2" 2 "3" 3 "4" 4 "5" 5 "6" 6 "7" 7 "8" 8 "9" 9 "a" 10 "b" 11 "c" 12 "d" 13 "e" 14 "f" 15) . -}}
{{- end -}}

{{/* Exclusive or of two numbers below 128. */}}
{{- define "fairlead.xor" -}}
{{- $left := index . 0 | int -}}
{{- $right := index . 1 | int -}}
{{- $sum := 0 -}}
{{- range list 1 2 4 8 16 32 64 -}}
{{- if ne (mod (div $left .) 2) (mod (div $right .) 2) -}}
{{- $sum = add $sum . -}}
{{- end -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* 64 hexadecimal digits as base64: three digits give two letters. */}}
{{- define "fairlead.base64" -}}
{{- $letters := "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" -}}
{{- $text := "" -}}
{{- $digits := printf "%s00" . -}}
{{- range $i := until 22 -}}
{{- $number := 0 -}}
{{- range $j := until 3 -}}
{{- $at := add (mul $i 3) $j | int -}}
{{- $number = add (mul $number 16) (include "fairlead.digit" (substr $at (add $at 1 | int) $digits) | int) -}}
{{- end -}}
{{- $high := div $number 64 | int -}}
{{- $low := mod $number 64 | int -}}
{{- $text = printf "%s%s%s" $text (substr $high (add $high 1 | int) $letters) (substr $low (add $low 1 | int) $letters) -}}
{{- end -}}
{{- printf "%s=" (substr 0 43 $text) -}}
{{- end -}}
