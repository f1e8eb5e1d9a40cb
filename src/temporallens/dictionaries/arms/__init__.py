"""The arms: one kind of dictionary in each file, its formula at the head.

`pre = (x - decoder_bias) @ encoder.T + encoder_bias`, `x_hat = z @ decoder + decoder_bias`; z are the codes, and the names those of
`docs/method.md`, "Arms".
"""
