"""What `lvtp_fx.calibrate` is made of: schedules, trials of them on images, and the search."""
