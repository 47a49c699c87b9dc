"""What `modelworks plan` knows: devices, memory under each parallel layout, time, money, scaling laws."""
